"""HTML for the people who operate the fleet: reads by the other apps' queries, writes by their actions."""
