"""HTML for the people who operate the fleet. Reads through the queries of the other apps, writes through their actions."""
