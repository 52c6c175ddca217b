//! GROUP-PPO: responses cut into runs of tokens, advantages at their ends.
