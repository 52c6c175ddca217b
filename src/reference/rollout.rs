//! Correcting for tokens drawn by another engine than the one that trains.
