"""The kernel's messages: read, answered, and the caches of the kernel ended. Knows no file and no manager."""
