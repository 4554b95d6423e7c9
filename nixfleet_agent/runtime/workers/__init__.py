"""The I/O-bearing edges around the reducer, one file and one thread each; none of them decides."""
