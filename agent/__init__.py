"""The agent: measures this machine and delivers its reports to the collector."""
