"""Parts that nets are made of: embedding, behaviour operations, attention, interactions, MLP, shortcut."""
