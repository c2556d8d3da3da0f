"""Correctness, timing, noise and the device's conditions; the rounds of a race and the test that ends them."""
