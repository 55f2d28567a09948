"""What Bramble is made of, and whether anything in it is known to be vulnerable."""
