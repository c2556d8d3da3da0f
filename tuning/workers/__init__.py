"""Processes that run or compile candidates and may be killed, and the messages between them and the tuner."""
