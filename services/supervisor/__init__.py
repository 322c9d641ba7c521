"""The process group behind `rlhf up`: starts PostgreSQL, NATS, Ray and the services, keeps them up, stops them."""
