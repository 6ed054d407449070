"""The sharding rules of operators, one file a family; ``table`` joins them."""
