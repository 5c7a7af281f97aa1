<?php
// The HTTP API from PHP 8, without extensions.
//
//   php presence.php online USER...
//   php presence.php emit ROOM EVENT TEXT
//   php presence.php remove USER
declare(strict_types=1);

final class PresenceError extends Exception
{
    /** $name is such as "unavailable": see the table of error codes. */
    public function __construct(public readonly string $name, string $message)
    {
        parent::__construct("$name: $message");
    }
}

/** Returns the decoded answer, null if there is none. */
function call(string $method, string $path, ?array $body = null): ?array
{
    $http = [
        'method' => $method,
        'header' => ['Authorization: Bearer ' . getenv('PRESENCE_API_KEY'), 'Content-Type: application/json'],
        'timeout' => 5,
        'ignore_errors' => true, // the body of an error tells what is wrong
    ];
    if ($body !== null) {
        $http['content'] = json_encode($body, JSON_THROW_ON_ERROR);
    }
    $url = (getenv('PRESENCE_URL') ?: 'http://localhost:3000') . $path;
    $text = file_get_contents($url, false, stream_context_create(['http' => $http]));
    if ($text === false) {
        throw new PresenceError('unreachable', $url);
    }
    $answer = $text === '' ? null : json_decode($text, true, flags: JSON_THROW_ON_ERROR);
    if (isset($answer['code'])) {
        throw new PresenceError($answer['code'], $answer['error']);
    }
    return $answer;
}

/** Tells of at most 1000 users, in their order, whether they are online. */
function online(array $users): array
{
    return call('POST', '/v1/users', ['userIds' => $users])['users'];
}

/** Sends an event to the connections in a room. */
function emit(string $room, string $event, mixed ...$args): void
{
    call('POST', '/v1/rooms/' . rawurlencode($room) . '/emit', ['event' => $event, 'args' => $args]);
}

/** Removes a user from all rooms, ends the connections, and returns in how many places the user was. */
function remove(string $user): int
{
    return call('DELETE', '/v1/users/' . rawurlencode($user) . '?disconnect=true')['removed'];
}

$args = array_slice($argv, 2);
try {
    switch ($argv[1] ?? '') {
        case 'online':
            foreach (online($args) as $user) {
                echo $user['userId'], $user['online'] ? ' online ' : ' offline ', $user['conns'], "\n";
            }
            break;
        case 'emit':
            emit($args[0], $args[1], ['text' => $args[2]]);
            break;
        case 'remove':
            echo 'removed ', remove($args[0]), "\n";
            break;
        default:
            exit(2);
    }
} catch (PresenceError $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(1);
}
