"""Devices, groups, enrolment, and the document that each device shall follow."""
