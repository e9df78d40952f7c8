"""Program: a step compiled for devices, be they simulated, here, or only described."""
