"""The local page's server: what may reach it, what it answers, and what it keeps of a chat."""
