"""Services of our own that tests talk to: as honest as the test wants them."""
