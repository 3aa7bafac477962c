"""Native code for the CPU: compact execution, computing what the policies ask for alone, and convolutions."""
