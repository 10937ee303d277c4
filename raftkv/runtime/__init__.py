"""The real ports and the asyncio shell around the sans-IO parts."""
