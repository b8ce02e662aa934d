class KazooState:
    CONNECTED: str
    SUSPENDED: str
    LOST: str
