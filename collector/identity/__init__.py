"""Certificates and tokens: who may speak, and how a machine becomes a host."""
