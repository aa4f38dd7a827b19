"""Where a block looks, whether it needs the query for that, and how far the network sees."""
