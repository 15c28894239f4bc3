"""Stand-ins for the providers, to try an integration without them: same protocol, real pictures, faults at will."""
