"""What the header of a picture says, read without decoding it: one file per format."""
