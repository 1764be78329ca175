"""``python -m lading.cli``."""

from lading.cli.main import main

main()
