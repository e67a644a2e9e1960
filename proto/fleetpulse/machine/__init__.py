"""What is known of a machine from its kernel's numbers: measurements and their formulas, pure.

Whoever reads the numbers, the agent beside the kernel or the collector over SSH, comes to the same
series with the same values.
"""
