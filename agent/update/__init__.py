"""What a device sends: the delta of an adapter, clipped, compressed, in wire form."""
