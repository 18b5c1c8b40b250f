"""What a result folder tells, made of what its run recorded: the card for the Hub, and the report for a browser."""
