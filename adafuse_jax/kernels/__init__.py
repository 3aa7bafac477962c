"""Compact execution on the CPU: native code that computes no more than the policies ask for."""
