"""`driftstream replay`: what a change would have done, from recorded events, without touching what is live."""
