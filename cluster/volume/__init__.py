"""A volume on a disk: its layout, the objects in it, their content, blocks and fences."""
