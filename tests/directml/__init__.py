"""The real DirectML, in a lab under Wine."""
