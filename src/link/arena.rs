//! A sink in one buffer per frame.
