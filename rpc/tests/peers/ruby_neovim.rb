# The gem `neovim`, the Ruby client of Neovim, in both roles; see README.md beside this file.
#
# It shows the second element of an error, since it expects Neovim's form. One thread and one fiber for each request: a call inside
# a handler suspends that handler, a sleep does not.

require "neovim"
require "socket"

class Methods
  def initialize(session)
    @session = session
    @kept = []
  end

  # The library runs this in a fiber of its own for each message.
  def received(message)
    result = public_send(message.method_name, *message.arguments)
    @session.respond(message.id, result) if message.sync?
  rescue StandardError => error
    @session.respond(message.id, nil, error.is_a?(Failed) ? error.value : error.message) if message.sync?
  end

  class Failed < StandardError
    attr_reader :value

    def initialize(value)
      super("failed")
      @value = value
    end
  end

  def echo(value)
    value
  end

  def add(first, second)
    first + second
  end

  def fail(value)
    raise Failed, value
  end

  def sleep(milliseconds)
    Kernel.sleep(milliseconds / 1000.0)
    milliseconds
  end

  def note(value)
    @kept << value
  end

  def notes
    kept = @kept
    @kept = []
    kept
  end

  def nest(depth)
    depth.zero? ? 0 : 1 + @session.request("nest", depth - 1)
  end
end

# A process for each connection: the library's session is bound to the thread that made it.
def serve
  listener = TCPServer.new("127.0.0.1", 0)
  puts "listening on 127.0.0.1:#{listener.addr[1]}"
  $stdout.flush
  loop do
    socket = listener.accept
    Process.detach(fork do
      listener.close
      session = Neovim::Session.new(Neovim::EventLoop.new(Neovim::Connection.new(socket, socket)))
      methods = Methods.new(session)
      session.run { |message| methods.received(message) }
    end)
    socket.close
  end
end

def outcome(session, method, params)
  ["ok", session.request(method, *params)]
rescue Neovim::Session::Exited
  raise
rescue StandardError => error
  ["error", error.message]
end

def call(host, port)
  session = Neovim::Session.new(Neovim::EventLoop.tcp(host, port))
  methods = Methods.new(session)
  steps = Fiber.new do
    while (step = session.request("next"))
      kind, method, params = step
      result = ["unable", nil]
      case kind
      when "call"
        result = outcome(session, method, params)
      when "notify"
        session.notify(method, *params)
        result = ["ok", nil]
      when "leave"
        Thread.new { Kernel.sleep(0.1); exit!(0) }
        session.request(method, *params)
      end
      session.request("report", result)
    end
    exit!(0)
  end
  steps.resume
  session.run { |message| methods.received(message) }
end

ARGV[0] == "serve" ? serve : call(ARGV[1], ARGV[2].to_i)
