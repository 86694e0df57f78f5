"""Is the INT8 file good enough, and how sure are we?"""
