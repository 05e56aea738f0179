"""Who a process is, by what it proves that, and whom it believes: certificates of the network's own authority."""
