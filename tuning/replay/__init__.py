"""Replay: strategies judged on recorded measurements, without the hardware."""
