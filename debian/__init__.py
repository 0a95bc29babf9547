"""What the Debian package is made with."""
