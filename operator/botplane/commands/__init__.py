"""The commands of people, by subject; `botplane.cli` joins them."""
