"""What a Q/DQ graph computes, in integers and with a declared rounding. No disk, no runtime."""
