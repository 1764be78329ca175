"""``python -m lading.cli``."""

from lading.cli.entry import main

main()
