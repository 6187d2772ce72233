"""The paper's experiments: each a readable script whose Config is its documentation."""
