"""What a run costs: messages in time, statistics, clocks."""
