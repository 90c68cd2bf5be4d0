"""What only measures or compares."""
