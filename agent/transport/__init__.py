"""Links to a broker, topics, chunked transfers, the durable outbox. Only here: paho, amqtt."""
