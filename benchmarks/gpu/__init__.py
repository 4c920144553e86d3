"""The GPU lane: tests on the device, tables, configuration search and counters, in one command (`make gpu`)."""
