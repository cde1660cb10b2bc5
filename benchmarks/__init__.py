"""How fast shufflestore is beside what people use today, and beside what the machine allows."""
