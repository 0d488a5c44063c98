"""Any folder of pictures, with or without label maps."""
