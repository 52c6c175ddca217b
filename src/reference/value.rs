//! The loss of the critic.
