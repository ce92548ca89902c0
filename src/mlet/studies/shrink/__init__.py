"""The smallest served model that is about as good as a wide one."""
