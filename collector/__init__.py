"""The collector: takes in reports, writes what differs, and answers how the fleet is."""
