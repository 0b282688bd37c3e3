"""What every other package stands on: plan, errors, records, files, locks, progress, units."""
