"""What is trained, and how it is used: experiments, their tasks, runs."""
