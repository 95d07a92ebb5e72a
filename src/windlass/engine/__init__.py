"""The core: requests, pages, scheduling, sampling and the two background loops. Token ids only, no text."""
